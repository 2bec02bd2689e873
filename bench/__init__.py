"""Side-by-side measurements against real peers, on this machine, now: `make bench`."""
