"""What a node shows to those who run it: metrics for Prometheus, and probes, over HTTP."""
