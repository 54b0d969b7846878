"""One module a question; one function a line of the issue's list. Each returns rows of the result table."""
