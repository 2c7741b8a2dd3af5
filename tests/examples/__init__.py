"""Programs of users of the library, as the pages show them; each is run as its users would."""
