"""Places that training never saw: radar and optical imagery of one place, and change between its two dates."""
