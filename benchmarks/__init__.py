"""What the sidecar costs, each figure beside a baseline of the same run. See docs/benchmarks.md."""
