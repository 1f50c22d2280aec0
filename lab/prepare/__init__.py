"""Raw recordings as laboratories keep them, made ready; and such recordings made up."""
