"""What needs an extra: Ray's workers, vector databases. Imported only inside of the command that asks for
it."""
