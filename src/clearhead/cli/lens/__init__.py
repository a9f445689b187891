"""The verbs of `clearhead lens`, one file each."""
