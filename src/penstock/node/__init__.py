"""What the processes of one machine share: a database, turns, and who of them still lives."""
