"""Updates of a run: new events are merged with its data, a new version learns them, and is used if it is not worse."""
