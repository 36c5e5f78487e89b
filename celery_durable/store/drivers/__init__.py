"""The usual transactions of the journal, sent to a database's driver without SQLAlchemy in between."""
