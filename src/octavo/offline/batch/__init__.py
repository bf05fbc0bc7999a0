"""`octavo run-batch`: a file of requests in, a file of results out, through the server's application and no port."""
