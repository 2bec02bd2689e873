"""The story `make demo` tells, with evidence for each step.

`story.py` tells it, `data.py` brings the flights, `job/` holds the scripts that run inside the containers."""
