"""Fuzzing of what guests and frontends can reach; docs/development.md says how to run it."""
