// A service of node's for `cargo xtask verdicts`: verdicts_server.js PORT
const http = require("http");
const answers = new Map();

http
  .createServer((request, response) => {
    const parts = [];
    request.on("data", (part) => parts.push(part));
    request.on("end", () => {
      const asked = JSON.parse(Buffer.concat(parts).toString());
      if (!answers.has(asked.key)) answers.set(asked.key, { sum: asked.list.reduce((a, b) => a + b, 0), name: Buffer.from(asked.name) });
      if (answers.size > 500) answers.delete(answers.keys().next().value);
      const body = JSON.stringify({ sum: answers.get(asked.key).sum, name: answers.get(asked.key).name.toString() });
      response.writeHead(200, { "Content-Length": Buffer.byteLength(body) });
      response.end(body);
    });
  })
  .listen(Number(process.argv[2]), "127.0.0.1");
