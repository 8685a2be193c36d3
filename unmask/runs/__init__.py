"""The work of the commands: from a composed configuration, or parsed flags, to files on disk. Commands and Python API call it."""
