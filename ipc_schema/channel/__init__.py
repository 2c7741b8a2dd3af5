"""What a save helper and its controller say to each other, and how it is encoded."""
