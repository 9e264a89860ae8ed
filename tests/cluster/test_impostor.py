import threading

import httpx

from quire_cluster import impostor


def test_whatever_is_asked_the_answer_is_the_page() -> None:
    server = impostor.server(0, b"not metrics\n")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        for path in ("/metrics", "/health"):
            answer = httpx.get(f"http://127.0.0.1:{server.server_port}{path}")
            assert (answer.status_code, answer.content) == (200, b"not metrics\n")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
