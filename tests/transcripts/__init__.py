"""Runs etcd's recorded transcripts against the core: `python -m tests.transcripts DIR_OR_FILE...`."""
