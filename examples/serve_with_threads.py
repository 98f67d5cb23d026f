"""A web service whose threads share one restorer.

Each request has a thread, and all threads call one restorer, with the same results as one after the other. Faces are searched and
pasted side by side, and the networks take turns. Here the program also sends four photos to itself, and stops. It is a sketch: a
service on a real network needs limits of size and time, and a way to know who asks.
"""

import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np

from sgpn import FaceRestorer
from sgpn_data.astronaut import degraded_astronaut

restorer = FaceRestorer.from_pretrained(device="cpu")


class Restore(BaseHTTPRequestHandler):
    def do_POST(self):
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        photo = cv2.imdecode(np.frombuffer(sent, np.uint8), cv2.IMREAD_COLOR)
        if photo is None:
            self.send_error(415, "this is no picture")
            return
        answer = cv2.imencode(".png", restorer.restore(photo).image)[1].tobytes()
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Restore)
threading.Thread(target=server.serve_forever, daemon=True).start()


def send(noise: float) -> np.ndarray:
    photo = degraded_astronaut({"noise": noise})
    address = f"http://127.0.0.1:{server.server_port}/"
    with urllib.request.urlopen(address, cv2.imencode(".png", photo)[1].tobytes()) as answer:
        return cv2.imdecode(np.frombuffer(answer.read(), np.uint8), cv2.IMREAD_COLOR)


with ThreadPoolExecutor(4) as clients:
    for number, picture in enumerate(clients.map(send, (2, 6, 10, 14))):
        cv2.imwrite(f"answer_{number}.png", picture)
server.shutdown()
server.server_close()
print("four photos answered: answer_0.png to answer_3.png")
