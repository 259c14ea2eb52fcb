"""Taking results elsewhere: archives that other machines continue from, research crates, and Hugging Face formats."""
