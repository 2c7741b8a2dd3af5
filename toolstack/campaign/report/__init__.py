"""What a campaign found, as text, JUnit and a page."""
