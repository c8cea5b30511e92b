"""The steps of the GPU check, one file each, and what they share."""
