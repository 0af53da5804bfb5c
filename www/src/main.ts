import './app.js';

// Not while developing: there the files change under it.
if (import.meta.env.PROD && 'serviceWorker' in navigator) {
  void navigator.serviceWorker.register(new URL('./sw.js', document.baseURI), { type: 'classic' });
}
