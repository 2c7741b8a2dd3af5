"""The connection of two helpers whose postcopy outlives the `xl` that started them."""
