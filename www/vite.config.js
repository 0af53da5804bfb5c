import { createHash } from 'node:crypto';
import { defineConfig } from 'vite';

import { CONTENT_SECURITY_POLICY, HEADERS } from './policy.js';

/** Puts the policy into the page; not while developing, where Vite's own client needs more. */
const policy = {
  name: 'policy',
  apply: 'build',
  transformIndexHtml: () => [
    { tag: 'meta', attrs: { 'http-equiv': 'Content-Security-Policy', content: CONTENT_SECURITY_POLICY }, injectTo: 'head-prepend' },
  ],
};

/** Tells the service worker which files the page consists of, and the hosts that read `_headers` what to send. */
const offline = {
  name: 'offline',
  apply: 'build',
  enforce: 'post',
  generateBundle: {
    order: 'post',
    handler(_, bundle) {
      const worker = bundle['sw.js'];
      if (!worker) return; // The bundle of the engine's worker.
      const files = Object.keys(bundle).filter((name) => name !== 'sw.js' && !name.endsWith('.map'));
      const pages = files.map((name) => (name === 'index.html' ? './' : `./${name}`));
      const assets = [...pages, './icon.svg', './manifest.webmanifest'].sort();
      const version = createHash('sha256');
      for (const name of files.sort()) version.update(name).update(bundle[name].code ?? bundle[name].source ?? '');
      worker.code = worker.code
        .replaceAll('__ASSETS__', JSON.stringify(assets))
        .replaceAll('__VERSION__', JSON.stringify(version.digest('hex').slice(0, 12)))
        .replaceAll('__POLICY__', JSON.stringify(HEADERS));
      const headers = Object.entries(HEADERS).map(([name, value]) => `  ${name}: ${value}\n`);
      this.emitFile({ type: 'asset', fileName: '_headers', source: `/*\n${headers.join('')}` });
    },
  },
};

export default defineConfig({
  base: './',
  plugins: [policy, offline],
  worker: { format: 'es' },
  optimizeDeps: { exclude: ['oxcow'] },
  server: { fs: { allow: ['..'] } },
  preview: { host: '127.0.0.1', headers: HEADERS },
  build: {
    target: 'es2022',
    assetsInlineLimit: 0,
    modulePreload: false,
    rollupOptions: {
      input: { main: 'index.html', sw: 'src/sw.ts' },
      output: { entryFileNames: (chunk) => (chunk.name === 'sw' ? 'sw.js' : 'assets/[name]-[hash].js') },
    },
  },
});
