import react from '@vitejs/plugin-react'
import { defineConfig } from 'vite'

// `npm run dev` forwards to a platform started with `shallop up`.
const platform = process.env.SHALLOP_WEB ?? 'http://127.0.0.1:8080'

export default defineConfig({
  plugins: [react()],
  base: './',
  build: {
    outDir: '../src/shallop/dashboard/static',
    emptyOutDir: true,
    modulePreload: { polyfill: false },
    // Browsers since spring 2024: light-dark() of the style sheet stays as it is.
    target: ['chrome123', 'firefox125', 'safari17.5'],
    chunkSizeWarningLimit: 600,
    reportCompressedSize: false,
  },
  server: { proxy: { '/apis': platform, '/api': platform, '/ui': platform } },
})
