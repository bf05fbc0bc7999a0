"""The engine seen from outside: requests go in, streams of deltas come out."""
