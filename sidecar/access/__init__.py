"""Who may speak to the sidecar, and who a caller is."""
