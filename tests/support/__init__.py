"""What the tests share: a realm, a lab of namespaces, a kernel to run them in."""
