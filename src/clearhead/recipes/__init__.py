"""Functions that wire the rooms into what the commands do."""
