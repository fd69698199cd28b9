"""The sidecar's end of the link: voice workers' calls enter here."""
