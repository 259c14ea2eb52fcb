"""Making artifacts again: the code and the specs in a scratch folder, and what differs between the two results."""
