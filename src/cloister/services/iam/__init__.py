"""IAM: roles, policies, and how they hang together. Users and groups do not exist in Cloister: people use
the root key or a role's session."""
