"""What both ends of the link speak, and the files they share."""
