"""What a Python program uses: a trainer over objects in memory, the same run as the command's."""
