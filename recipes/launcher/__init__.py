"""From the command line to a checked configuration, its data and its run folder."""
