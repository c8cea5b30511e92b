"""Published methods for the rows that verify drafts."""
