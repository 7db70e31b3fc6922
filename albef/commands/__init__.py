"""One module for each group of commands: a frozen dataclass per command, whose fields are its options."""
