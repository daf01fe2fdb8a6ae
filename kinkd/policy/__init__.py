"""The policy of a realm: the document, what applies to one host, how that is asked."""
