"""The command line: `sdfsmis` and its commands, each a thin layer over a room of the library."""
