"""The story `make demo` tells, with evidence for each step.

`story.py` tells it with `blocks.py`, `data.py` brings the flights, `job/` holds the scripts that run inside
the containers."""
