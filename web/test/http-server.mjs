// A web server of one file that serves ranges as it should, until it is told how to misbehave.

import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { setTimeout as wait } from 'node:timers/promises';
import { gzipSync } from 'node:zlib';

/** A version of the file, with what a server says of it. */
export function versionOf(bytes, more = {}) {
  const hash = createHash('sha256').update(bytes).digest('hex').slice(0, 16);
  return { bytes, etag: `"${hash}"`, lastModified: 'Sat, 01 Nov 2025 10:00:00 GMT', ...more };
}

/**
 * `behave(request, number)` is asked for every request, counted from 1, and may answer with what is to go wrong:
 *
 * - `status`, `headers`: this answer, without content
 * - `whole`: 200 and all of the file; `gzip`: compressed, too
 * - `range`: this Content-Range (`null`: none) over the right bytes
 * - `short`: so many bytes less than the range, in an answer that ends in order; negative: more
 * - `cut`: the connection breaks after so many bytes; -1: before the answer
 * - `stall`: nothing comes after so many bytes; -1: nothing at all
 * - `version`: this version of the file; `unconditional`: whatever the request's conditions say
 */
export class RangeServer {
  /** The requests so far: method, path, headers, range asked for, when (ms), and `closed` by the client in between. */
  log = [];
  behave = () => undefined;
  /** Before each answer, in milliseconds. */
  latency = 0;
  /** Sent with every answer. */
  headers = {};
  /** Files beside the one: gives `[type, content]` for a path that it knows. */
  others = () => undefined;
  inFlight = 0;
  mostInFlight = 0;
  sent = 0;

  static async start(bytes, more) {
    const server = new RangeServer();
    server.version = versionOf(bytes, more);
    server.server = createServer((request, response) => {
      server.#answer(request, response).catch((error) => response.destroy(error));
    });
    server.server.listen(0, '127.0.0.1');
    await once(server.server, 'listening');
    server.origin = `http://127.0.0.1:${server.server.address().port}`;
    server.url = `${server.origin}/images/disk.qcow2`;
    return server;
  }

  /** The ranges that were asked for, as `first-last`. */
  get ranges() {
    return this.log.filter(({ method }) => method === 'GET').map(({ headers }) => headers.range?.replace('bytes=', ''));
  }

  forget() {
    this.log = [];
    this.sent = 0;
    this.mostInFlight = 0;
    this.behave = () => undefined;
  }

  async close() {
    this.server.closeAllConnections();
    this.server.close();
    await once(this.server, 'close');
  }

  async #answer(request, response) {
    const other = await this.others(request.url);
    if (other) return void response.writeHead(200, { 'Content-Type': other[0], ...this.headers }).end(other[1]);
    const entry = { method: request.method, path: request.url, headers: request.headers, at: performance.now(), closed: false };
    this.log.push(entry);
    const gets = this.log.filter(({ method }) => method === 'GET').length;
    const odd = this.behave(request, gets) ?? {};
    this.inFlight += 1;
    this.mostInFlight = Math.max(this.mostInFlight, this.inFlight);
    response.on('close', () => {
      this.inFlight -= 1;
      entry.closed = !response.writableFinished;
    });
    response.sendDate = false;
    if (this.latency) await wait(this.latency);
    if (odd.stall === -1) return;
    if (odd.cut === -1) return void request.socket.resetAndDestroy();

    const { bytes, etag, lastModified } = odd.version ?? this.version;
    const about = {
      ...(etag && { ETag: etag }),
      ...(lastModified && { 'Last-Modified': lastModified }),
      ...this.headers,
      ...odd.headers,
    };
    if (odd.status) return void response.writeHead(odd.status, about).end();
    const { 'if-match': match, 'if-unmodified-since': since, range } = request.headers;
    const failed = (match && match !== etag) || (since && Date.parse(lastModified) > Date.parse(since));
    if (failed && !odd.unconditional) return void response.writeHead(412, about).end();

    const [, first, asked] = /^bytes=(\d+)-(\d+)$/.exec(range ?? '')?.map(Number) ?? [];
    if (odd.whole || first === undefined) {
      const body = odd.gzip ? gzipSync(bytes) : bytes;
      this.sent += body.length;
      const length = { 'Content-Length': body.length, ...(odd.gzip && { 'Content-Encoding': 'gzip' }) };
      return void response.writeHead(200, { ...about, ...length }).end(body);
    }
    if (first >= bytes.length) return void response.writeHead(416, { ...about, 'Content-Range': `bytes */${bytes.length}` }).end();
    const last = Math.min(asked, bytes.length - 1);
    let body = bytes.subarray(first, last + 1);
    const said = odd.range === undefined ? `bytes ${first}-${last}/${bytes.length}` : odd.range;
    const head = { ...about, ...(said !== null && { 'Content-Range': said }) };
    if (odd.gzip) {
      body = gzipSync(body);
      head['Content-Encoding'] = 'gzip';
    }
    if (odd.short) body = Buffer.concat([body.subarray(0, body.length - odd.short), Buffer.alloc(Math.max(0, -odd.short))]);
    // Without a length the answer comes in chunks, of which there may be any number.
    if (!odd.short) head['Content-Length'] = body.length;
    response.writeHead(206, head);
    const part = odd.cut ?? odd.stall;
    if (part === undefined) {
      this.sent += body.length;
      return void response.end(body);
    }
    this.sent += part;
    await new Promise((resolve) => response.write(body.subarray(0, part), resolve));
    if (odd.cut !== undefined) request.socket.end(); // What was written still arrives.
  }
}
