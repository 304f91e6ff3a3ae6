"""The command line: options of every command, and the commands themselves."""
