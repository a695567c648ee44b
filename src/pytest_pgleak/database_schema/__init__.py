"""What is in a database before the first test: a file of SQL, or whatever a function of the user's makes there."""
