"""One module a foreign format, each one name table used both ways."""
