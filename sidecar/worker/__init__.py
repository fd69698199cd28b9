"""The worker's end of the link: what a process that holds calls needs to reach the sidecar."""
