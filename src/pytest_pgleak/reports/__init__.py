"""What was found, for machines and for those who were not there: files, GitHub's annotations, JUnit's properties."""
