"""AWS services that a job may call but that Cloister does not exist for, served by moto behind our walls."""
