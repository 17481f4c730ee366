"""What everybody is asked to do; each module has one work, and one function, `measure`."""
