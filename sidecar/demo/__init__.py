"""The demo model: rules in a language model's place, so that a first run needs no key."""
