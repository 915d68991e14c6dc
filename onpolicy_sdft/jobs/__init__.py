"""The composition root: config in, working objects and whole jobs out. The only room that knows every other."""
